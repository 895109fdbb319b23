"""Text-to-image pipelines: loaded, adapted, guided."""
