"""What Kubernetes takes as a name, a label, a quantity or a path; checked where no server is.

The rules are those of Kubernetes' own validation: RFC 1123 and 1035 names, label syntax, resource
quantities. Each function gives what is wrong in a few words, "" where nothing is.
"""

import posixpath
import re
from fractions import Fraction

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
"""An RFC 1123 label, without its length."""
LABEL_LENGTH = 63
SUBDOMAIN_LENGTH = 253
NAME_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
"""What a label's value, and its key after the prefix, is made of."""
QUANTITY = re.compile(r"\d+(\.\d+)?([numkMGTPE]|[KMGTPE]i|[eE][-+]?\d+)?", re.ASCII)
SECRET_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
HUGEPAGES = re.compile(r"hugepages-([1-9]\d*(?:Ki|Mi|Gi))", re.ASCII)
DECIMAL_UNITS = "kMGTPE"
NATIVE_RESOURCES = ("cpu", "memory", "ephemeral-storage")


def label_fault(name: str) -> str:
    """Of an RFC 1123 label, as namespaces, volumes and containers are named."""
    if LABEL.fullmatch(name) and len(name) <= LABEL_LENGTH:
        return ""
    return f"use lower-case letters, digits and '-', at most {LABEL_LENGTH}"


def subdomain_fault(name: str) -> str:
    """Of an RFC 1123 subdomain, as most objects are named."""
    if all(map(LABEL.fullmatch, name.split("."))) and len(name) <= SUBDOMAIN_LENGTH:
        return ""
    return "use lower-case letters, digits, '-' and '.', a letter or digit at both ends"


def key_fault(key: str) -> str:
    """Of a label's or an annotation's key."""
    prefix, slash, name = key.rpartition("/")
    if slash and subdomain_fault(prefix):
        return "before '/' stands a domain in lower case: example.com/name"
    if not NAME_PART.fullmatch(name) or len(name) > LABEL_LENGTH:
        return f"use letters, digits, '-', '_' and '.', at most {LABEL_LENGTH}: example.com/name"
    return ""


def value_fault(value: str) -> str:
    """Of a label's value."""
    if not value or (NAME_PART.fullmatch(value) and len(value) <= LABEL_LENGTH):
        return ""
    return f"use letters, digits, '-', '_' and '.', at most {LABEL_LENGTH}"


def resource_fault(name: str) -> str:
    """Of a resource's name, such as `memory`, `hugepages-2Mi` or `rdma/hca`."""
    if name in NATIVE_RESOURCES or HUGEPAGES.fullmatch(name):
        return ""
    if "/" not in name:
        return f"use one of {', '.join(NATIVE_RESOURCES)}, hugepages-2Mi, or a device's name: a/b"
    return key_fault(name)


def quantity_fault(quantity: str, *, whole: bool = False) -> str:
    """Of a quantity more than 0; whole: devices come in whole numbers."""
    if whole and not re.fullmatch(r"[1-9][0-9]*", quantity):
        return "devices are counted in whole numbers"
    if not QUANTITY.fullmatch(quantity) or not re.search(r"[1-9]", quantity):
        return "use a number more than 0 with a unit: 500m, 4, 64Gi"
    return ""


def pages_fault(name: str, quantity: str) -> str:
    """Of a quantity of huge pages, which are asked for whole."""
    pages = HUGEPAGES.fullmatch(name)
    if not pages or _amount(quantity) % _amount(pages[1]) == 0:
        return ""
    return f"use a whole number of pages of {pages[1]}"


def _amount(quantity: str) -> Fraction:
    """The number that a quantity stands for."""
    found = re.fullmatch(r"([\d.]+(?:[eE][-+]?\d+)?)([a-zA-Z]*)", quantity)
    assert found, f"{quantity}: not a quantity, which was looked at before"
    number, unit = Fraction(found[1]), found[2]
    if unit.endswith("i"):
        return number * 1024 ** ("KMGTPE".index(unit[0]) + 1)
    small = {"n": -9, "u": -6, "m": -3, "": 0}
    power = small[unit] if unit in small else 3 * (DECIMAL_UNITS.index(unit) + 1)
    return number * Fraction(10) ** power


def path_fault(path: str) -> str:
    """Of a folder in a container that something is mounted at or written to."""
    if not path.startswith("/") or ":" in path or not path.isprintable():
        return "use an absolute path in the container, without ':' and control characters"
    if path != posixpath.normpath(path) or path.startswith("//"):
        return f'write it as "{posixpath.normpath(path).replace("//", "/")}"'
    return "" if path != "/" else "the root holds the image's own files"


def is_within(path: str, folder: str) -> bool:
    """Whether an absolute path is this folder or below it."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
