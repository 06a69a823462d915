"""modelcore: a small transformer library, from raw text to an exported, evaluated model.

Sub-packages import only what they need: ``modelcore.gptx``, ``modelcore.training`` and
``modelcore.inference`` load with torch, numpy and safetensors alone.
"""

__version__ = "0.1.0"
