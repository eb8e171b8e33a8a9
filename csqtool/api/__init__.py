"""The functions of the Python interface: what the command line does, with objects.

Models are `torch.nn.Module` objects or names; data are data sets, loaders, pairs of them, or names; finalized models
are `QuantizedModel` objects or files. Nothing is written unless a path is given, and nothing is printed unless
``progress=True``. Each function imports what it needs when it is called.
"""
