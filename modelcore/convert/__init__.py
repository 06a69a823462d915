"""Model folders of other programs: what a folder is, and one made into another."""

from modelcore.convert.formats import Conversion, convert, detect_format, read_model
from modelcore.convert.verification import ConversionError

__all__ = ["Conversion", "ConversionError", "convert", "detect_format", "read_model"]
