"""The datasets: where each lies, what must be there, and its images and annotations.

$DETECTRON2_DATASETS/  (the variable's default is ./datasets)  holds them in Detectron2's layouts.
"""
