"""The network: backbone, feature pyramid and heads."""
