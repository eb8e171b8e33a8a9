"""Sweeps: many searches of one model, side by side, for the accuracy that each size of file can have.

A sweep is a folder:

================== ==================================================================================================
``sweep.json``     the settings of every run, by name
``runs/NAME/``     run directories, see `csqtool.searching.run_directory`
``files/``         ``NAME.safetensors`` and ``NAME.csq`` of every finished run
``results/``       ``NAME.json``: the figures of a finished run, or why it could not be done
``logs/``          ``NAME.log``: what each run told
``table.md``       the figures of all runs
``front.svg``      the metric against the bytes of the packed files
================== ==================================================================================================

A run that is finished is not repeated. One that was stopped goes on from its last checkpoint.
"""
