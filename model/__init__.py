"""The detector: EfficientDet D0 to D7x and their relatives, for training and inference.

>>> model = build_detector("efficientdet_d0", num_classes=90, image_size=(512, 512))
>>> load_weights(model, Path("efficientdet_d0-f3276ba8.pth"))
>>> anchors = anchor_boxes(model.config)

Training: images (N x 3 x H x W, normalised), boxes (N x M x 4, y1 x1 y2 x2 in input pixels) and
labels (N x M, from 1, -1 for padding) give a loss.

>>> targets = assign_targets(anchors, boxes, labels)
>>> loss, class_loss, box_loss = DetectionLoss(model.config)(*model(images), targets)

Inference: rows x1 y1 x2 y2 score class in the pixels of the source images.

>>> detections = detect(*model.eval()(images), anchors, model.config, image_scale, image_size)
"""

from model.anchors import anchor_boxes
from model.detection import detect
from model.detector import EfficientDet, build_detector
from model.detector_config import DetectorConfig, detector_config, list_detectors
from model.losses import DetectionLoss
from model.sync_batchnorm import convert_sync_batchnorm
from model.targets import AnchorTargets, assign_targets
from model.weights import load_weights

__all__ = [
    "AnchorTargets",
    "DetectionLoss",
    "DetectorConfig",
    "EfficientDet",
    "anchor_boxes",
    "assign_targets",
    "build_detector",
    "convert_sync_batchnorm",
    "detect",
    "detector_config",
    "list_detectors",
    "load_weights",
]
