"""Training of dictionaries: streams of activations, the parameters that are trained, losses, and the run.

`interp.dictionaries.train` is the door. The loop is that of the zoo, `interp.zoo.trained.loop`.
"""
