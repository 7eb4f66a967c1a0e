"""Evaluation: folders of sound to reports.

sound_files         which sounds a folder holds, and what each should be
backbones, embed    sounds to embeddings
tags                sounds to the names of what is in them
reference           the recordings they are compared with, and those held out for the real row
measure, table      embeddings to metrics with intervals
rows, report, page  metrics to reports
recognition, kinds   recognised or not, kind by kind
ranking             whether backbones put systems in the same order
reconstruction, reconstruct_file    reconstruction by autoencoders
"""
