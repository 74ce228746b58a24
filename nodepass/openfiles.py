"""How many files this process may have open."""

from __future__ import annotations

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

# macOS calls its hard limit unlimited, then refuses any value above its OPEN_MAX.
_OPEN_MAX = 10240


def open_files() -> int | None:
    """How many files this process may have open; None where that is not limited."""
    if resource is None:
        return None
    soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def raise_open_files() -> None:
    """Raise the limit of open files to the hard limit: every session takes two descriptors."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, _OPEN_MAX):
        if soft == hard or (wanted != resource.RLIM_INFINITY and wanted <= soft):
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        return
