"""Checkpoints of any known layout → Detectron2 pickles that are proven before they are published.

source.py     SOURCE → checkpoint file, its hash held against the recorded one
layouts.py    the table of known layouts
haiku.py      JAX pickles → tensors under torchvision's names
detect.py     which of them a file has
backbone.py   checkpoint → backbone tensors under torchvision's names
verify.py     the proofs, independent of the modules above
convert.py    pickle and manifest, published together
export.py     the same backbone for torchvision, timm, OpenMMLab, safetensors
"""
