import torch
import transformers

import circuits
import interp.plots
import interp.tasks
import interp.zoo
from interp.attention import KeyMass, Mean, Offset
from interp.decompose import decompose, read_out, score_parts
from interp.edits import Ablate, Add, Apply, ForcePattern, KnockOut, Noise, Replace, Scale
from interp.gradients import gradients, weight_gradients
from interp.weights.changes import WeightMatrices
from probes.features import fourier_spectrum, linear_probe, singular_tokens, top_examples

model = interp.load("zoo:default")  # 4 layers of 12 heads, rotary; answers indirect objects
toy = interp.load("zoo:planted-induction")  # L0H0's kin look one back, L1H7 copies what came after
config = transformers.GPT2Config(
    vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3, attn_implementation="eager"
)
gpt2 = transformers.GPT2LMHeadModel(config).eval()  # learned positions, LayerNorm, random weights
small = interp.load(gpt2)

prompt = "While Skozul and Moxgax stayed at the market , Skozul passed a cake to"
corrupt = "While Rivlim and Zanlim stayed at the market , Quasov passed a cake to"
task = interp.pair(model, prompt, corrupt, "Moxgax", "Skozul")
ids = torch.tensor([[5, 9, 17, 40, 5, 9, 17, 33]])
