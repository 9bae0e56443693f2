import re
from pathlib import Path

import cocodata

# Each folder or module imports only from those before it, and from itself.
LAYERS = [
    *("errors", "files", "text"),
    *("format", "download", "checks", "mini", "sync", "__main__"),
]
# Run on hosts that have nothing but the standard library and these modules.
SENT_TO_HOSTS = {"sync.torrent", "sync.store", "sync.agent"}


def test_imports_only_go_down() -> None:
    root = Path(cocodata.__file__).parent
    found = {}
    for file in root.rglob("*.py"):
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        imports = re.findall(r"^\s*(?:from|import) cocodata\.([\w.]+)", file.read_text(), re.M)
        found[module] = imports
        if module == "__init__":
            continue
        layer = LAYERS.index(module.partition(".")[0])
        upward = [name for name in imports if LAYERS.index(name.partition(".")[0]) > layer]
        assert upward == [], module
    for module in SENT_TO_HOSTS:
        assert set(found[module]) <= SENT_TO_HOSTS, module
