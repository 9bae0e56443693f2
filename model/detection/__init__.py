"""What surrounds the network: anchors, targets, the criterion and the postprocessor."""
