"""3D Gaussians of a place: what they are, how they are drawn, stored, and predicted from the generator's features."""
