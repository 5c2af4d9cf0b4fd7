"""What a representation learned without labels is worth: protocols, readings, recipes, tables.

| file | holds |
|---|---|
| draws.py | the protocols, and the images that each draws from a source for a seed |
| recipes.py | the named trainings: one per published row, one recommended, the raw pixels |
| runner.py | one seed of one recipe on one protocol: train, embed, read |
| probes.py, clusterings.py, turning.py | the readings of embeddings |
| ceiling.py | the same encoder trained with labels, for comparison only |
| results.py | result files, mean and standard deviation over seeds |
| marks.py, tables.py | the published figures, and the tables beside them |
| figures.py | the manifold, and the explained variance |
"""
