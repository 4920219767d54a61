"""Makes the list of English words that `vocabulary="words"` learns from.

    python examples/make_word_list.py --out pez_fast/assets/words/words.txt.gz

It needs Debian's `wamerican` and `wbritish` (word lists of SCOWL) and the pip package `emoji` (names of Unicode CLDR).
Abbreviations are left out as far as their letters show it: words in capitals, words without a vowel, short ones.
"""

from __future__ import annotations

import argparse
import gzip
import re
from pathlib import Path

LISTS = tuple(Path("/usr/share/dict") / name for name in ("american-english", "british-english"))
SHORT = "a i am an as at ax be by do go he hi if in is it me my no of oh on or ox pi so to up us we".split()
# Words that people put into prompts for images, and that the lists lack.
PICTURES = (
    "anime bokeh chibi closeup coloring colouring comic concept cottagecore cyberpunk decor deco digital dreamcore "
    "dslr emoji fanart fantasy fisheye gothic hyperrealism hyperrealistic impressionism infographic isometric kawaii "
    "lego lofi macro manga minecraft minimalism minimalist monochrome noir origami pixar photorealism photorealistic "
    "photoshoot pixel render retro sci selfie steampunk surrealism ukiyo unreal vaporwave vintage voxel watercolor "
    "watercolour wallpaper".split()
)


def words() -> list[str]:
    """Returns the words, in lower case and sorted."""
    import emoji

    kept = {*SHORT, *PICTURES}
    for path in LISTS:
        for word in path.read_text(encoding="utf-8").split():
            if re.fullmatch("[a-z]{3}|[A-Za-z][a-z]{3,}", word) and re.search("[aeiouy]", word.lower()):
                kept.add(word.lower())
    for entry in emoji.EMOJI_DATA.values():
        kept.update(re.findall(r"(?<![a-z'’])[a-z]{3,}(?![a-z'’])", entry["en"].lower().replace("_", " ")))
    return sorted(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = words()
    args.out.write_bytes(gzip.compress(("\n".join(found) + "\n").encode("ascii"), 9, mtime=0))
    print(f"{len(found)} words, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
