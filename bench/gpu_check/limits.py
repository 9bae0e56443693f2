"""The limits of the check, each with its reason."""

from bench.gpu_check.results import Limit
from bench.measuring import Device

_FLOAT32 = "order of float32 sums: two memory formats on a processor differ by up to {}"
_TEN_BITS = "ten bits of mantissa: float16 on a processor differs by up to {}"
_SEVEN_BITS = "seven bits of mantissa: bfloat16 on a processor differs by up to {}"

# The deviations in the reasons are those of this check on processors, seeds 1, 2 and 42: float32 of
# efficientdet_d0 at 512 px, the others of the tiny detector at 128 px.
PARITY = {
    ("anchors with another target", "float32"): Limit(
        0.0, "the same comparisons of the same overlaps; both devices round IEEE divisions alike"
    ),
    ("box targets", "float32"): Limit(1e-5, "logarithms may differ in their last bits, 1e-7"),
    ("logits", "float32"): Limit(1e-3, _FLOAT32.format("1.2e-5; TF32 would differ by 1e-2")),
    ("loss", "float32"): Limit(1e-4, _FLOAT32.format("7e-6")),
    ("gradient", "float32"): Limit(5e-3, _FLOAT32.format("5e-4")),
    ("detections", "float32"): Limit(
        0.02, "boxes at the threshold of suppression may be kept by one device alone"
    ),
    ("logits", "TF32"): Limit(0.05, _TEN_BITS.format("1.6e-2")),
    ("loss", "TF32"): Limit(0.01, _TEN_BITS.format("1.4e-3")),
    ("gradient", "TF32"): Limit(0.5, _TEN_BITS.format("0.17")),
    ("logits", "float16"): Limit(0.05, _TEN_BITS.format("1.6e-2")),
    ("loss", "float16"): Limit(0.01, _TEN_BITS.format("1.4e-3")),
    ("gradient", "float16"): Limit(0.5, _TEN_BITS.format("0.17")),
    ("logits", "bfloat16"): Limit(0.4, _SEVEN_BITS.format("0.13")),
    ("loss", "bfloat16"): Limit(0.05, _SEVEN_BITS.format("1.4e-2")),
}

# Levels of 255, as cluster-doctor compares decoders (ansible/roles/doctor/files/gpu_check.py).
DECODED = Limit(
    1.0, "decoders round differently, by one level on average; wrong colours are far off"
)
NEIGHBOURS = Limit(0.0, "the pixels of an image must not depend on the other images of a batch")
TRUNCATED = Limit(1.0, "training must stop at a file that is cut off, and name it", at_least=True)

# Of the speed of the mode before it, the training's and so on: bounds are multiplied by it.
COMPILED = Limit(0.95, "what is compiled must not be slower; 5 % is noise", at_least=True)
INPUT = Limit(1.0, "else training waits for images", at_least=True)
EVALUATION = Limit(
    0.5, "a third of a training step's work, in float32, which takes twice as long", at_least=True
)
_NO_GROWTH = "steps use again what the first ones allocated"
GROWTH: dict[Device, Limit] = {
    "cuda": Limit(0.0, _NO_GROWTH),
    "cpu": Limit(50.0, f"{_NO_GROWTH}; the C library's heap varies"),
}
