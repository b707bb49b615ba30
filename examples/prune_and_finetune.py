# %% [markdown]
# Prune a trained network, then fine-tune it without losing a single zero. Takes a few seconds.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn

import openwork as ow

x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
order = torch.Generator().manual_seed(0)


def train(model, optimizer, steps):
    for _ in range(steps):
        batch = torch.randint(1500, (64,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def accuracy(model):
    with torch.no_grad():
        return (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10))
train(model, torch.optim.Adam(model.parameters(), lr=0.002), 200)
print(f"dense: {accuracy(model):.3f}")

# %% 98 % of the weights go at once; the largest of each layer stay, as many as LAMP gives it.
pruned = ow.sparsify_(model, ow.Magnitude(sparsity=0.98, allocation="lamp"))
print(pruned.plan)
print(f"pruned: {accuracy(model):.3f}")

# %% Fine-tune with momentum and weight decay: zeros stay zero.
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
sparsifier = ow.attach(model, optimizer, ow.KeepZeros(), masks=pruned.masks)
train(model, optimizer, 200)
print(f"fine-tuned: {accuracy(model):.3f}")
assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in pruned.masks.items())
