"""COCO's 12 detection metrics: names, order and meaning."""

MEANINGS: dict[str, str] = {
    "AP": "average precision, mean over IoU .50 to .95",
    "AP50": "average precision at IoU .50",
    "AP75": "average precision at IoU .75",
    "APs": "AP of small objects, under 32² pixels",
    "APm": "AP of medium objects, 32² to 96² pixels",
    "APl": "AP of large objects, over 96² pixels",
    "AR1": "average recall of 1 detection per image",
    "AR10": "average recall of 10 detections per image",
    "AR100": "average recall of 100 detections per image",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
}

METRICS = tuple(MEANINGS)
"""The names in pycocotools' order."""
