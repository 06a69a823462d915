"""Model folders of other programs: what a folder is, and one made into another."""

from modelcore.convert.conversion import Conversion, convert
from modelcore.convert.formats import Format, detect_format, read_model
from modelcore.errors import ConversionError

__all__ = ["Conversion", "ConversionError", "Format", "convert", "detect_format", "read_model"]
