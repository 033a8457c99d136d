"""Small models for tests: a Wan-VACE transformer as a family, without the parts that a test does not need."""
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACEPipeline

from faceid_nb.models.wan_vace import WanVACE


def family_of(transformer, shift=3.):
    "Wrap a transformer as a family that can predict velocities"
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return WanVACE(WanVACEPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=transformer))


def weights_of(adapters):
    "List the weights of a set of adapters"
    return [parameter for adapter in adapters.values() for parameter in adapter.named_parameters().values()]
