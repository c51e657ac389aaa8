"""The offline stages that make a bundle: data, encoder, shared, zoo, vae, set_encoder, diffusion, export, evaluate."""
