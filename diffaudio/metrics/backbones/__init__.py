"""Networks to measure with."""

from diffaudio.metrics.backbones.base import Backbone, TextBackbone, card, sha256
from diffaudio.metrics.backbones.tagger import TaggerBackbone

__all__ = ["Backbone", "TaggerBackbone", "TextBackbone", "card", "sha256"]
