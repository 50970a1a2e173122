"""The published protocols, key by key: what each configuration must resolve to, in both engines.

Sources: the detection configurations of DenseCL and MoCo, MoCo's issue 34, Detectron2's
configs/Base-RCNN-FPN.yaml and configs/Cityscapes/mask_rcnn_R_50_FPN.yaml; DenseCL's configurations
for mmsegmentation 0.11.0 and that version's defaults.
"""

import pytest

from benchmarks.config import FOLDER, load_config

# The input that self-supervised and torchvision backbones were trained on.
RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}
ALL_DETECTORS = {
    **RGB,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.GAMMA": 0.1,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MAX_SIZE_TEST": 1333,
}
COCO = {
    **ALL_DETECTORS,
    "MODEL.MASK_ON": True,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"],
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "SOLVER.WARMUP_ITERS": 1000,
}
C4 = {"MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm", "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000}
STAGES = ["res2", "res3", "res4", "res5"]
FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": STAGES,
    "MODEL.FPN.IN_FEATURES": STAGES,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.FPN.NORM": "SyncBN",
}
NORMS_EVERYWHERE = {
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
}
STANDARD_HEADS = {
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.NORM": "",
}
ONE_X = {"SOLVER.STEPS": [60_000, 80_000], "SOLVER.MAX_ITER": 90_000}
TWO_X = {"SOLVER.STEPS": [120_000, 160_000], "SOLVER.MAX_ITER": 180_000}
R50, R101 = {"MODEL.RESNETS.DEPTH": 50}, {"MODEL.RESNETS.DEPTH": 101}
TEN_PERCENT = {"DATASETS.TRAIN": ["coco_2017_train_10percent"]}
VOC = {
    **ALL_DETECTORS,
    **C4,
    "MODEL.MASK_ON": False,
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
    "DATASETS.TEST": ["voc_2007_test"],
    "INPUT.MIN_SIZE_TRAIN": list(range(480, 801, 32)),
    "SOLVER.STEPS": [18_000, 22_000],
    "SOLVER.MAX_ITER": 24_000,
    "SOLVER.WARMUP_ITERS": 100,
}
FCN = {
    **RGB,
    **R50,
    "MODEL.BACKBONE.NAME": "build_contracted_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STEM_TYPE": "basic",
    "MODEL.RESNETS.RES4_DILATION": 2,
    "MODEL.RESNETS.RES5_DILATION": 4,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],
    "MODEL.SEM_SEG_HEAD.NAME": "FCNHead",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 512,
    "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.MEAN_OVER_IGNORED": True,
    "MODEL.SEM_SEG_HEAD.AUXILIARY.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.AUXILIARY.LOSS_WEIGHT": 0.4,
    "INPUT.SCALE_RANGE": [0.5, 2.0],
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.75,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.COLOR_AUG_SSD": True,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0005,
    "SOLVER.LR_SCHEDULER_NAME": "PolyLR",
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_MIN": 0.0001,
    "TEST.PRECISE_BN.ENABLED": False,
}
VOC_SEG = {
    **FCN,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 21,
    "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS": False,
    "DATASETS.TRAIN": ["voc_2012_seg_trainaug"],
    "DATASETS.TEST": ["voc_2012_seg_val"],
    "INPUT.MIN_SIZE_TRAIN": [512],
    "INPUT.MAX_SIZE_TRAIN": 2048,
    "INPUT.CROP.SIZE": [512, 512],
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 2048,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MAX_ITER": 20_000,
    "TEST.SLIDING_WINDOW.SIZE": 0,
}
CITYSCAPES = {
    **FCN,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
    "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS": True,
    "DATASETS.TRAIN": ["cityscapes_fine_sem_seg_train"],
    "DATASETS.TEST": ["cityscapes_fine_sem_seg_val"],
    "INPUT.MIN_SIZE_TRAIN": [1025],
    "INPUT.MAX_SIZE_TRAIN": 2049,
    "INPUT.CROP.SIZE": [769, 769],
    "INPUT.MIN_SIZE_TEST": 1025,
    "INPUT.MAX_SIZE_TEST": 2049,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_ITER": 40_000,
    "TEST.SLIDING_WINDOW.SIZE": 769,
    "TEST.SLIDING_WINDOW.STRIDE": 513,
}
PROTOCOLS = {
    "voc_seg_fcn_r50_20k": VOC_SEG,
    "cityscapes_fcn_r50_40k": CITYSCAPES,
    "voc_r50_c4_24k": {**VOC, **R50},
    "voc_r101_c4_24k": {**VOC, **R101},
    "coco_r50_c4_1x": {**COCO, **C4, **R50, **ONE_X},
    "coco_r50_c4_2x": {**COCO, **C4, **R50, **TWO_X},
    "coco_r101_c4_2x": {**COCO, **C4, **R101, **TWO_X},
    "coco_r50_fpn_1x": {**COCO, **FPN, **NORMS_EVERYWHERE, **R50, **ONE_X},
    "coco_r101_fpn_1x": {**COCO, **FPN, **NORMS_EVERYWHERE, **R101, **ONE_X},
    "coco_r50_fpn_moco_1x": {**COCO, **FPN, **STANDARD_HEADS, **R50, **ONE_X},
    "coco10_r50_fpn_90k": {**COCO, **FPN, **NORMS_EVERYWHERE, **R50, **ONE_X, **TEN_PERCENT},
    "coco10_r50_fpn_9k": {
        **COCO,
        **FPN,
        **NORMS_EVERYWHERE,
        **R50,
        **TEN_PERCENT,
        "SOLVER.STEPS": [6_000, 8_000],
        "SOLVER.MAX_ITER": 9_000,
    },
    "cityscapes_mask_rcnn_r50_fpn_24k": {
        **ALL_DETECTORS,
        **FPN,
        **NORMS_EVERYWHERE,
        **R50,
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "DATASETS.TRAIN": ["cityscapes_fine_instance_seg_train"],
        "DATASETS.TEST": ["cityscapes_fine_instance_seg_val"],
        "INPUT.MIN_SIZE_TRAIN": list(range(800, 1025, 32)),
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TRAIN": 2048,
        "INPUT.MAX_SIZE_TEST": 2048,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.STEPS": [18_000],
        "SOLVER.MAX_ITER": 24_000,
        "SOLVER.WARMUP_ITERS": 1000,
    },
}


def value(config, key):
    for name in key.split("."):
        config = config[name]
    return plain(config)


def plain(value):
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_configuration_is_the_published_protocol(name):
    config = load_config(FOLDER / f"{name}.yaml")
    found = {key: value(config, key) for key in PROTOCOLS[name]}
    assert found == PROTOCOLS[name]


@pytest.mark.detectron2
@pytest.mark.parametrize("name", PROTOCOLS)
def test_detectron2_reads_the_published_protocol(name):
    get_cfg = pytest.importorskip("detectron2.config").get_cfg
    config = get_cfg()
    config.set_new_allowed(True)  # segmentation's keys, which this project's own parts read
    config.merge_from_file(str(FOLDER / f"{name}.yaml"))
    found = {key: value(config, key) for key in PROTOCOLS[name]}
    assert found == PROTOCOLS[name]
