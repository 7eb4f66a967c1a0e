"""Numbers that say how good sounds are: from pure functions of embeddings up to a report on a folder.

frechet, kernel, coverage     distances between two sets of embeddings
classification, similarity    what a classifier, or a text, has to do with each sound
checks                        silence, clipping, loudness, repeated clips
intervals                     how sure each number is
backbones                     sound -> embeddings
evaluation, results           all of it for one set of sounds, and the report's schema
"""
