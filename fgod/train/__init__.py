"""Full-parameter training of one stage on NVFP4 weights: masters that accumulate, packed moments, and proofs.

`stage.run` trains; `recipe.TrainRecipe` says how, and needs no torch. Nothing is imported here, so that whoever checks
a recipe does not wait for torch.
"""
