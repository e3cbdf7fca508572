"""One module a stage: it reads inputs, does the work with the layers below, and commits outputs.

`python -m nanochat.stages PLAN.json` runs one rank of one stage; the launcher starts it.
"""
