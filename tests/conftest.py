"""What all tests share."""

from hypothesis import settings

# A busy machine is slow at times; that is no failure.
settings.register_profile("nodepass", deadline=None)
settings.load_profile("nodepass")
