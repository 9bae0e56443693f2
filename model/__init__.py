"""The detector: EfficientDet D0 to D7x and their relatives, for training and inference.

>>> detector = build_detector("efficientdet_d0", num_classes=90, image_size=(512, 512))
>>> load_weights(detector, Path("efficientdet_d0-f3276ba8.pth"))

Training: images (N x 3 x H x W, normalized), boxes (N x M x 4, y1 x1 y2 x2 in pixels of the
network's input) and labels (N x M, from 1, -1 for padding) give a loss.

>>> criterion = DetectionCriterion(detector.config)
>>> loss, class_loss, box_loss = criterion(detector(images), boxes, labels)

Inference: rows x1 y1 x2 y2 score label in pixels of the source images. source_size (N x 2) has the
source images' heights and widths, source_scale (N) their pixels per pixel of the network's input.

>>> postprocessor = Postprocessor(detector.config)
>>> detections = postprocessor(detector.eval()(images), source_scale, source_size)
"""

from model.config import DetectorConfig, detector_config, list_detectors
from model.detection.criterion import DetectionCriterion
from model.detection.outputs import Outputs
from model.detection.postprocessor import Postprocessor
from model.detection.targets import Targets
from model.network.detector import EfficientDet, build_detector
from model.network.sync_batchnorm import convert_sync_batchnorm
from model.weights import load_weights

__all__ = [
    "DetectionCriterion",
    "DetectorConfig",
    "EfficientDet",
    "Outputs",
    "Postprocessor",
    "Targets",
    "build_detector",
    "convert_sync_batchnorm",
    "detector_config",
    "list_detectors",
    "load_weights",
]
