# %% [markdown]
# Compress a trained transformer from a little data, without training it again. Takes some seconds.

# %%
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import openwork as ow


class Reader(nn.Module):
    """Reads a digit row by row: eight tokens of eight pixels, three blocks."""

    def __init__(self):
        super().__init__()
        self.rows, self.places = nn.Linear(8, 32), nn.Parameter(torch.zeros(8, 32))
        block = nn.TransformerEncoderLayer(32, 4, 96, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.blocks(self.rows(x) + self.places).mean(1))


x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x, dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(y)
torch.manual_seed(0)
dense = Reader()
optimizer = torch.optim.Adam(dense.parameters(), lr=0.003)
for _ in range(200):
    batch = torch.randint(1400, (64,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(dense(x[batch]), y[batch]).backward()
    optimizer.step()


def accuracy(model):
    model.eval()
    with torch.no_grad():
        return (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()


print(f"dense: {accuracy(dense):.3f}")

# %% The same number of connections for each recipe; what is left makes up for what is gone, more and more.
calibration = list(x[:512].split(64))
recipes = {
    "magnitude": [ow.Magnitude(sparsity=0.8), ow.BiasCorrect()],
    "wanda": ow.Wanda(sparsity=0.8, pattern="unstructured"),
    "wanda, refit": [ow.Wanda(sparsity=0.8, pattern="unstructured"), ow.Refit()],
    "sparsegpt": ow.SparseGPT(sparsity=0.8),
    "alps, bias corrected": [ow.ALPS(sparsity=0.8), ow.BiasCorrect()],
}
results = {}
for name, recipe in recipes.items():
    model = copy.deepcopy(dense)
    found = ow.sparsify_(model, recipe, data=calibration, errors=True)
    errors = {line.layer: line.error for line in found.lines}  # after the last stage
    results[name] = accuracy(model), sum(errors.values()) / len(errors), found.plan.kept
    print(f"{name}: {results[name][0]:.3f}, error of a layer {results[name][1]:.3f}, {found.plan.kept} kept")

# %% The table of the last one: what each stage did to each layer.
print(found)
