"""An inference file's problems, as the verifier sees them."""

from csqtool.verifying.csq_decoder import decode
from csqtool.verifying.inference_checks import inference_problems


def problems(content, model):
    tensors, metadata, _ = decode(content, where="x")
    return inference_problems(tensors, metadata, model)
