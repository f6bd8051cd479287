"""A latent diffusion model's parts, its noise and velocity arithmetic, sampling, learned tokens, trainable parameters.

Letters used for shapes everywhere: B batch, C latent channels, h w latent size, H W pixels, L text tokens, D text width,
n vectors of a learned token, E text encoders, K concepts, S sampling steps. Images are [B, 3, H, W] in [-1, 1]. All sizes and the
prediction type come from the loaded model's configuration.
"""
