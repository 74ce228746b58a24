"""Lets ``pip`` and ``build`` find the project; all metadata is in setup.cfg."""

from setuptools import setup

setup()
