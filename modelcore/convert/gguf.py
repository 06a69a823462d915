"""GGUF, the file that llama.cpp and the programs built on it read: written, and read back to be checked.

One file holds the weights, the sizes, the tokenizer and the chat template. Names and layouts are llama.cpp's: as in
its own converter, rows of query and key projections are reordered for Llama, because its rotary embedding turns
neighbouring channels where Hugging Face's and ours turn a channel of the first half and one of the second. RoPE that is
stretched is written as what it does to each pair of channels: the tensor ``rope_freqs``, by which llama.cpp divides
their angles.

Specification: the GGUF document of ggml, and llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from modelcore.convert.gguf_vocabulary import write_vocabulary
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.gptx.rope_scaling import rope_frequencies
from modelcore.models import bloom, gpt2, llama, mpt
from modelcore.models.layout import TensorMap
from modelcore.models.weights import check_tensors, empty_model, fill_model, tensor_shapes
from modelcore.tokenizers import Tokenizer

if TYPE_CHECKING:
    import gguf
    import numpy.typing as npt

DType = Literal["f32", "f16", "bf16", "q8_0"]
"""What matrices are stored as. Vectors, and GPT-2's positions, are always fp32."""

_DTYPE_OF = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

_ARCHITECTURES = {"llama": llama, "gpt2": gpt2, "bloom": bloom}

# Names of the layers of a block, by ours; a fused one of ours may be several of theirs.
_LLAMA_LAYERS = {
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.out": ("attn_output",),
    "feedforward.up": ("ffn_gate", "ffn_up"),
    "feedforward.down": ("ffn_down",),
}
_GPT2_LAYERS = {
    "attention.qkv": ("attn_qkv",),
    "attention.out": ("attn_output",),
    "feedforward.up": ("ffn_up",),
    "feedforward.down": ("ffn_down",),
}
_NORMS = {"attention_norm": "attn_norm", "feedforward_norm": "ffn_norm"}
_POSITIONS = "position_embd.weight"
_ROPE_FACTORS = "rope_freqs.weight"
_MAGNITUDE = "rope.scaling.attn_factor"


def default_dtype(model: GPT) -> DType:
    """The type that loses nothing of the model's weights."""
    return _DTYPE_OF[model.embedding.weight.dtype]  # type: ignore[return-value]


def write_gguf(path: Path, model: GPT, tokenizer: Tokenizer | None, *, name: str, dtype: DType) -> None:
    """Writes ``model`` as a GGUF file, one tensor at a time.

    Args:
        path: The file, usually a temporary one.
        model: A Llama, GPT-2 or BLOOM; adapters must be merged.
        tokenizer: Its tokenizer, or None: llama.cpp then takes and gives ids alone.
        name: The model's name.
        dtype: What matrices are stored as. One whose rows are no multiple of 32 long cannot be ``q8_0`` and is
            ``f16``.

    Raises:
        InputError: If llama.cpp has no such model, the tokenizer is another model's, or ``dtype`` is unknown.
    """
    import gguf

    if dtype not in get_args(DType):
        raise InputError(f"dtype is {dtype!r}; GGUF is written as one of: {', '.join(get_args(DType))}")
    config = model.config
    architecture = _architecture(config)
    if tokenizer is not None:
        tokenizer.check_model(config.vocab_size)
    writer = gguf.GGUFWriter(path, architecture)
    try:
        _write_sizes(writer, config, name)
        file_types = gguf.LlamaFileType
        files = {
            "f32": file_types.ALL_F32,
            "f16": file_types.MOSTLY_F16,
            "bf16": file_types.MOSTLY_BF16,
            "q8_0": file_types.MOSTLY_Q8_0,
        }
        writer.add_file_type(files[dtype])
        if dtype == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if tokenizer is None:
            writer.add_tokenizer_model("none")
        else:
            write_vocabulary(writer, tokenizer)
        for their_name, tensor in _tensors(model):
            kind = _type_of(their_name, tensor, dtype)
            shape = gguf.quants.quant_shape_to_byte_shape(tuple(tensor.shape), kind)
            writer.add_tensor_info(their_name, shape, np.dtype(np.uint8), math.prod(shape), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for their_name, tensor in _tensors(model):
            values: npt.NDArray[np.float32] = tensor.float().numpy()
            writer.write_tensor_data(gguf.quants.quantize(values, _type_of(their_name, tensor, dtype)))
    finally:
        writer.close()


def read_fields(path: Path) -> dict[str, Any]:
    """All fields of a GGUF file by name.

    Raises:
        InputError: If it is no GGUF file, or truncated.
    """
    return {name: field.contents() for name, field in _open(path).fields.items()}


def read_gguf(path: Path) -> GPT:
    """The model in a file that :func:`write_gguf` wrote, in fp32 and evaluation mode.

    Sizes come from the file's own fields and tensors: what is wrong in them is wrong in the model.

    Raises:
        InputError: If the file is truncated, of another architecture, or its tensors are not those of its sizes.
    """
    import gguf

    path = Path(path)
    reader = _open(path)
    theirs = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    try:
        config = _config(fields, theirs)
    except KeyError as error:
        raise InputError(f"{path} lacks the field {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    factors = theirs.pop(_ROPE_FACTORS, None)
    model = empty_model(config)
    shapes, maps = tensor_shapes(model), _tensor_maps(config)
    expected = {name: shape for entry in maps for name, shape in entry.shapes(shapes[entry.ours]).items()}
    check_tensors(path, theirs, expected)
    ours = {
        entry.ours: entry.join([_paired(name, theirs[name], config, back=True) for name in entry.theirs])
        for entry in maps
    }
    if factors is not None:
        positions = torch.arange(config.context_length, dtype=torch.float32)[:, None]
        angles = positions * rope_frequencies(config.head_dim, config.rope_theta) / factors  # (context, head_dim / 2)
        magnitude = fields.get(f"{fields['general.architecture']}.{_MAGNITUDE}", 1.0)
        model.cos, model.sin = angles.cos() * magnitude, angles.sin() * magnitude
    return fill_model(model, ours)


def _architecture(config: GPTConfig) -> str:
    """llama.cpp's name of the architecture.

    Raises:
        InputError: If it has none that computes the same.
    """
    if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
        raise InputError("RoPE scaling 'dynamic' depends on the length of the text, which GGUF cannot say")
    window = config.sliding_window
    if window is not None:
        if window < config.context_length:
            raise InputError(
                f"a sliding window of {window} tokens cannot be written as GGUF: llama.cpp's 'llama' sees all of the "
                f"context, {config.context_length} tokens"
            )
        config = dataclasses.replace(config, sliding_window=None)  # it never hides anything
    for name, architecture in (_ARCHITECTURES | {"mpt": mpt}).items():
        if architecture.matches(config):
            if config.feedforward == "gelu":
                raise InputError(f"GGUF has {name} with the tanh form of GELU alone, and this model has the exact one")
            return name
    raise InputError(
        f"a model with {config.positions} positions, {config.norm} and {config.feedforward} cannot be written as GGUF "
        "here; Llama, GPT-2 and BLOOM can"
    )


def _write_sizes(writer: gguf.GGUFWriter, config: GPTConfig, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    if config.norm == "rmsnorm":
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
        if config.rope_scaling is not None and config.rope_scaling.magnitude != 1.0:
            writer.add_float32(f"{writer.arch}.{_MAGNITUDE}", config.rope_scaling.magnitude)
    else:
        writer.add_layer_norm_eps(config.norm_eps)


def _config(fields: dict[str, Any], tensors: dict[str, Tensor]) -> GPTConfig:
    """The configuration that a file's fields, and which tensors it has, describe."""
    architecture = fields["general.architecture"]
    if architecture not in _ARCHITECTURES:
        raise InputError(f"the architecture {architecture!r} cannot be read; {', '.join(_ARCHITECTURES)} can")

    def field(name: str) -> Any:
        return fields[f"{architecture}.{name}"]

    kind: dict[str, Any]
    fixed: dict[str, Any]
    if architecture == "llama":
        kind = {"norm_eps": field("attention.layer_norm_rms_epsilon"), "rope_theta": field("rope.freq_base")}
        kind["attention_bias"] = "blk.0.attn_q.bias" in tensors
        kind["feedforward_bias"] = "blk.0.ffn_up.bias" in tensors
    else:
        positions = "learned" if architecture == "gpt2" else "alibi"
        fixed = {"positions": positions, "norm": "layernorm", "feedforward": "gelu_tanh"}
        fixed["embedding_norm"] = architecture == "bloom"
        biases = dict.fromkeys(("attention_bias", "feedforward_bias", "norm_bias"), True)
        kind = fixed | biases | {"norm_eps": field("attention.layer_norm_epsilon")}
    return GPTConfig(
        vocab_size=field("vocab_size"),
        context_length=field("context_length"),
        n_layers=field("block_count"),
        d_model=field("embedding_length"),
        n_heads=field("attention.head_count"),
        n_kv_heads=field("attention.head_count_kv"),
        d_ff=field("feed_forward_length"),
        tie_embeddings="output.weight" not in tensors,
        **kind,
    )


def _tensor_maps(config: GPTConfig) -> list[TensorMap]:
    """Each of our tensors and where it lies in a GGUF file; a tied head is left out, as llama.cpp expects it."""
    name = _architecture(config)
    layers = _LLAMA_LAYERS if name == "llama" else _GPT2_LAYERS
    norm_kinds = ("weight",) if name == "llama" else ("weight", "bias")
    maps = [TensorMap("embedding.weight", ("token_embd.weight",))]
    if config.embedding_norm:
        maps += [TensorMap(f"embedding_norm.{kind}", (f"token_embd_norm.{kind}",)) for kind in norm_kinds]
    if config.positions == "learned":
        maps.append(TensorMap("position_embedding.weight", (_POSITIONS,)))
    for i in range(config.n_layers):
        for ours, theirs in _NORMS.items():
            maps += [TensorMap(f"blocks.{i}.{ours}.{kind}", (f"blk.{i}.{theirs}.{kind}",)) for kind in norm_kinds]
        for projection in _ARCHITECTURES[name].projections(config):
            for kind in ("weight", "bias") if projection.bias else ("weight",):
                parts = tuple(f"blk.{i}.{part}.{kind}" for part in layers[projection.ours])
                maps.append(TensorMap(f"blocks.{i}.{projection.ours}.{kind}", parts, projection.rows))
    maps += [TensorMap(f"norm.{kind}", (f"output_norm.{kind}",)) for kind in norm_kinds]
    if not config.tie_embeddings:
        maps.append(TensorMap("head.weight", ("output.weight",)))
    return maps


def _tensors(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors in their order, each made when it is asked for."""
    state = model.state_dict()
    for entry in _tensor_maps(model.config):
        for name, tensor in entry.split(state[entry.ours].detach().cpu()).items():
            yield name, _paired(name, tensor, model.config)
    if (scaling := model.config.rope_scaling) is not None:
        dim, theta = model.config.head_dim, model.config.rope_theta
        yield _ROPE_FACTORS, rope_frequencies(dim, theta) / scaling.frequencies(dim, theta, model.config.context_length)


def _paired(name: str, tensor: Tensor, config: GPTConfig, back: bool = False) -> Tensor:
    """Reorders a query or key projection of a Llama; other tensors are returned as they are.

    Within a head of D channels, ours turns channel i with i + D/2, theirs 2i with 2i + 1.
    """
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k"):
        return tensor
    heads = config.n_heads if part == "attn_q" else config.n_kv_heads
    halves = (heads, config.head_dim // 2, 2) if back else (heads, 2, config.head_dim // 2)
    grouped = tensor.reshape(*halves, *tensor.shape[1:])  # (heads, 2, D/2, …), or (heads, D/2, 2, …) on the way back
    return grouped.transpose(1, 2).reshape(tensor.shape).contiguous()


def _type_of(name: str, tensor: Tensor, dtype: DType) -> gguf.GGMLQuantizationType:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.dim() == 1 or name == _POSITIONS:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[dtype.upper()]
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if tensor.shape[1] % block == 0 else GGMLQuantizationType.F16


def _open(path: Path) -> gguf.GGUFReader:
    import gguf

    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (ValueError, IndexError, OSError) as error:
        raise InputError(f"{path} is truncated or no GGUF file: {error}") from None
