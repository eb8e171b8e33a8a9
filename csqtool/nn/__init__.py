"""PyTorch side of csqtool: bit gates, activation quantizers, dataflow, the finalized module."""
