"""Paths as users give them: expanded, checked and shown in errors, and the words of their names."""

import contextlib
import errno
import os
import re
import stat
import unicodedata
from pathlib import Path

from styledrop_jax.errors import UserError, did_you_mean, one_line

_LONGEST_HINT = 50  # letters of a file name that an error suggests
_LONGEST_FILE = 2**26  # bytes of a text that people write: prompts, captions, tables

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# A hash, or letters and digits that alternate: "3f2a9c01", "dQw4w9WgXcQ".
_CODE = re.compile(r"(?=.*\d)[0-9a-fA-F]{8,}|(?=.{10,})([A-Za-z]+\d+){2,}[A-Za-z]*")
# Names that screens and photo agencies give: what else stands in them is an app or a photographer.
_GIVEN_NAME = re.compile(
    r"^(screen ?shots?|screen recording|bildschirmfoto|capture|captura|снимок экрана|스크린샷)\b"
    r"|^(スクリーンショット|截屏|屏幕截图)"
    r"|\b(unsplash|pexels|shutterstock|istock\w*|gettyimages|adobestock)\b"
)
# A date, or a word beside a number, in the words that say nothing: no count, as in "3 cats".
_DATE_OR_NUMBERED = re.compile(r"\d[\d ]{5}|[^\W\d_]{2}.*\d|\d.*[^\W\d_]{2}")
# Words that say nothing of what an image shows: cameras' and programs' own, and those for "image".
_NO_WORDS = frozenset(
    """
    img imgp image images imag pic pics pict picture photo photos foto fotos bild imagen imagem
    immagine afbeelding obraz изображение фото 图片 图像 照片 微信图片 写真 画像 사진 이미지
    dsc dscn dscf dsci dcim pxl mvimg mp vid mov sam gopr gp gx dji cimg kimg hpim mg sdc dcp pano
    burst fb whatsapp signal telegram snapchat instagram facebook messenger wechat
    chatgpt dalle dall gemini generated comfyui midjourney download downloads unnamed
    untitled unbenannt ohne titel sans titre sin título senza titolo безымянный 未命名 名称未設定
    無題 제목 copy kopie new final edit edited crop cropped original resized scaled temp tmp test
    sample example input output result render frame page scan fig figure file reference ref
    at on am pm jan feb mar apr may jun jul aug sep sept oct nov dec
    """.split()
)


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with its `~` or `~user` replaced; it need not exist.

    Raises:
        UserError: there is no such user, or no file could have this name.
    """
    path = Path(path)
    try:
        path = path.expanduser()
        os.lstat(path)
    except RuntimeError:
        raise UserError(f"{shown_path(path)}: no such user; expected a path or ~/…") from None
    except ValueError as error:  # a zero byte, or letters that no file system has
        raise UserError(f"{shown_path(path)}: not a path; expected the name of a file") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            expected = "no file has so long a name; expected a path"
            raise UserError(f"{shown_path(path)}: {expected}") from error
    return path


def shown_path(path: str | os.PathLike[str], longest: int = 100) -> str:
    """A path as a message shows it: one line, and the middle left out of a long one."""
    return one_line(str(path), longest)


def check_file(path: Path) -> None:
    """Does nothing if `path` is a file that may be read.

    Raises:
        UserError: it is missing (a file of a similar name is suggested), a folder or a device, its
            name is no name, or reading it is forbidden.
    """
    name = shown_path(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISREG(kind):
            path.open("rb").close()
    except FileNotFoundError:
        raise UserError(f"{name}: no such file{_similar(path)}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read as a file: {error.strerror}") from error
    except ValueError as error:  # a zero byte, or letters that no file system has
        raise UserError(f"{name}: not a path; expected the name of a file") from error
    if stat.S_ISDIR(kind):
        raise UserError(f"{name}: found a directory; expected a file")
    if not stat.S_ISREG(kind):
        raise UserError(f"{name}: found a pipe or a device; expected a file")


def read_text(path: Path) -> str:
    r"""The text of a UTF-8 file without its byte order mark, each line ended by "\n" alone.

    Raises:
        UserError: the file cannot be read, is larger than 64 MiB, or is not UTF-8.
    """
    check_file(path)
    if (size := path.stat().st_size) > _LONGEST_FILE:
        raise UserError(
            f"{shown_path(path)}: found {size:,} bytes, expected a text of at most "
            f"{_LONGEST_FILE:,}"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{shown_path(path)}: not UTF-8 text (byte {error.start})"
        raise UserError(f"{where}; expected a text file") from error


def stem_words(path: Path) -> str:
    """The words of a file's name that describe an image: "red_house-2.png" → "red house".

    Names without such words give "": numbers and dates, hashes, what cameras, phones and programs
    call their files ("IMG_2023", "PXL_20230401", "Screenshot …", "untitled"), words for "image"
    ("photo-1") and the names of photo agencies' files. A camera's name before other words is
    dropped: "IMG_2023 red house" → "red house".
    """
    stem = unicodedata.normalize("NFC", path.stem)
    letters = []
    for letter in _UUID.sub(" ", stem):
        is_word = unicodedata.category(letter)[0] in "LMN"
        letters.append(letter if is_word else " ")
    words = []
    for word in "".join(letters).split():
        if not _CODE.fullmatch(word):
            words.append(word)
    if _GIVEN_NAME.search(" ".join(words).lower()):
        return ""
    start = 0
    while start < len(words) and _says_nothing(words[start]):
        start += 1
    if start == len(words):
        return ""
    if _DATE_OR_NUMBERED.search(" ".join(words[:start])):
        words = words[start:]
    return re.sub(r"[\s\d]+$", "", " ".join(words))


def _says_nothing(word: str) -> bool:
    """Whether a word of a file's name is a number, one Latin letter, or in `_NO_WORDS`."""
    bare = re.sub(r"\d", "", word).lower()
    return bare in _NO_WORDS or not bare or (len(bare) == 1 and bare.isascii())


def _similar(path: Path) -> str:
    names = []
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if len(name) <= _LONGEST_HINT and name.isprintable():
                names.append(name)
    return did_you_mean(path.name, names, part=_stem)


def _stem(name: str) -> str:
    return Path(name).stem
