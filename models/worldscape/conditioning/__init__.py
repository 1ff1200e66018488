"""What the generator is told: camera motion, rays, and what memory already knows of the view."""
