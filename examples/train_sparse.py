# %% [markdown]
# Train a sparse network from the start, in memory of the size of its connections. Takes a few seconds.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn

import openwork as ow

x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
train, test = slice(0, 1500), slice(1500, None)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))

# %% What would happen? Nothing has changed yet.
method = ow.RigL(sparsity=0.95, allocation="erk", steps=300, every=20)
print(ow.plan(model, method))

# %% Hold only the kept connections: parameters, gradients and optimizer state all have their size.
ow.to_sparse_(model, method)
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
sparsifier = ow.attach(model, optimizer, method)

# %% An ordinary loop.
order = torch.Generator().manual_seed(0)
for _ in range(method.steps):
    batch = torch.randint(1500, (64,), generator=order)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()

accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
print(sparsifier.summary())
print(f"test accuracy {accuracy:.3f}")

# %% Save it, load it into a fresh model, and run it fast.
sparsifier.detach()
ow.save(model, "digits.safetensors")
fresh = nn.Sequential(nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))
loaded = ow.load("digits.safetensors", into=fresh)
print(ow.pack_(loaded, x[:64]))
