"""The image path: DICOM → decode → grid → batch → result (→ DICOM), the same on either side of the wire.

1. `find_series` finds the series of a folder (`series.py`), `select` chooses among them (`selection.py`) by rules that
   are data (`rules.py`, `rule_files.py`), `Pseudonymiser` renames them (`deidentify.py`); `deidentified` rewrites whole
   files, where whole files are wanted (`profile.py`).
2. `decode` turns one frame into a `Slice`: pixels and geometry, nothing that identifies anybody (`dicom.py`).
3. `Grid.resample` brings the slice to the model's square grid, `(size, size)` float32 (`grid.py`).
4. The model normalises, predicts and explains; `Grid.project` brings what it says back to the slice's raster.
5. `write_png`, `simulated_dicom` and `heat_map_dicom` write results, visibly marked (`export.py`); `parametric_maps`
   keeps the values of heat maps where their slices lie (`maps.py`). What all have in common is in `derived.py`.

`write_phantom` makes a cohort to do it with (`phantom.py`). Nothing here knows torch or the server. Names are imported
when they are first used, so that `import limner` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limner.imaging.deidentify import Pseudonymiser, load_or_create_key
    from limner.imaging.derived import Importance, ModelReference, write_dicom
    from limner.imaging.dicom import decode, read_header
    from limner.imaging.errors import ImageError
    from limner.imaging.export import heat_map_capture, heat_map_dicom, simulated_dicom, write_png
    from limner.imaging.grid import Grid
    from limner.imaging.maps import MappedSlice, parametric_maps
    from limner.imaging.phantom import phantom_severity, phantom_subject, write_phantom
    from limner.imaging.profile import Retain, deidentified
    from limner.imaging.pseudonym_map import PseudonymMap
    from limner.imaging.rule_files import default_rules, read_rules
    from limner.imaging.rules import Range, SelectionRules
    from limner.imaging.selection import Decision, Verdict, select
    from limner.imaging.series import FoundFiles, Series, SeriesSlice, find_series
    from limner.imaging.slices import Slice

__all__ = [
    "Decision",
    "FoundFiles",
    "Grid",
    "ImageError",
    "Importance",
    "MappedSlice",
    "ModelReference",
    "PseudonymMap",
    "Pseudonymiser",
    "Range",
    "Retain",
    "SelectionRules",
    "Series",
    "SeriesSlice",
    "Slice",
    "Verdict",
    "decode",
    "default_rules",
    "deidentified",
    "find_series",
    "heat_map_capture",
    "heat_map_dicom",
    "load_or_create_key",
    "parametric_maps",
    "phantom_severity",
    "phantom_subject",
    "read_header",
    "read_rules",
    "select",
    "simulated_dicom",
    "write_dicom",
    "write_phantom",
    "write_png",
]

_HOMES = {
    "deidentify": ("Pseudonymiser", "load_or_create_key"),
    "derived": ("Importance", "ModelReference", "write_dicom"),
    "dicom": ("decode", "read_header"),
    "errors": ("ImageError",),
    "export": ("heat_map_capture", "heat_map_dicom", "simulated_dicom", "write_png"),
    "grid": ("Grid",),
    "maps": ("MappedSlice", "parametric_maps"),
    "phantom": ("phantom_severity", "phantom_subject", "write_phantom"),
    "profile": ("Retain", "deidentified"),
    "pseudonym_map": ("PseudonymMap",),
    "rule_files": ("default_rules", "read_rules"),
    "rules": ("Range", "SelectionRules"),
    "selection": ("Decision", "Verdict", "select"),
    "series": ("FoundFiles", "Series", "SeriesSlice", "find_series"),
    "slices": ("Slice",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
