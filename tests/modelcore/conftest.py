"""Where kernels run in the tests: on the GPU if there is one, otherwise in Triton's interpreter."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    mend_interpreter()
    return torch.device("cpu")


def mend_interpreter() -> None:
    """Three things that Triton 3.6's interpreter cannot do yet, or not with NumPy from 2.4 on."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    patch_lang_tensor, create_dot, create_si_to_fp = (
        interpreter._patch_lang_tensor,
        builder.create_dot,
        builder.create_si_to_fp,
    )

    def with_whole_numbers(tensor, scope):
        """A whole number of an array of one element: NumPy no longer lets ``int`` make it."""
        patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def dot_of_bfloat16(self, a, b, d, *arguments):
        """bfloat16 is kept as the 16 bits that it consists of, and these would be multiplied."""

        def numbers(handle):
            if handle.dtype.scalar != tl.bfloat16:
                return handle
            return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

        return create_dot(self, numbers(a), numbers(b), d, *arguments)

    def bfloat16_of_bytes(self, whole, kind):
        """A whole number would be taken for the bits of a bfloat16. Those of a byte fit in its 8 bits of precision."""
        if kind.scalar != tl.bfloat16:
            return create_si_to_fp(self, whole, kind)
        bits = whole.data.astype(np.float32).view(np.uint32)
        return interpreter.TensorHandle((bits >> 16).astype(np.uint16), tl.bfloat16)

    interpreter._patch_lang_tensor = with_whole_numbers
    builder.create_dot, builder.create_si_to_fp = dot_of_bfloat16, bfloat16_of_bytes
