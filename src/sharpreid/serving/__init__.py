"""Use of a trained network, without Hydra and Lightning."""
