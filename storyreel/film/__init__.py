"""All that lies in `out/NAME`: segments and their records, the manifest, the film, its page."""
