"""The language of MR protocols, in which nobody has a name: what may be kept of a series' description.

For `profile.py` (PS3.15 E.3.5, Clean Descriptors). It judges no series; that is `selection.py`'s.
"""

import re

# What the letters of "t2_tse_tra_320_p2" may be.
_WORD = re.compile(
    "adc|ax|axial|b|bh|blade|bval|cervix|contrast|cor|coronal|cube|d|dce|deep|diff|dis|dixon|dl|dwi|dyn|dyndist|dynamic|"
    "echo|ep|epi|fast|fat|fatsat|female|fl|flair|fov|fr|frfse|fs|fse|gd|gre|haste|high|highres|hr|i|in|ir|iso|lava|loc|"
    "localiser|localizer|m|male|map|mm|moco|mr|mri|mvxd|nav|nd|norm|obl|oblique|opp|p|para|pd|pelvic|pelvis|phase|plane|"
    "post|pre|propeller|prostate|res|resolve|resp|rt|sag|sagittal|sat|scout|se|small|sms|space|spair|spc|spgr|spin|spir|"
    "ssfse|star|stir|survey|t|tfe|thrive|tirm|tra|trace|trans|transversal|transverse|trig|tse|turbo|uterus|vibe|view|"
    "vista|w|wi|x"
)


def is_protocol(text: str) -> bool:
    """Whether a text is of MR protocols only: their words, small numbers, and not enough of these to be a date."""
    parts = re.findall(r"[^\W\d_]+|\d+", text.lower())
    numbers = [part for part in parts if part.isdigit() and len(part) > 1]
    return (
        all(part.isdigit() or _WORD.fullmatch(part) for part in parts)
        and len(numbers) <= 1
        and all(len(number) <= 3 for number in numbers)
    )
