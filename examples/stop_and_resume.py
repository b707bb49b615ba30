# %% [markdown]
# Stop a sparse training run and go on as if nothing had happened: the weights have the same bits.

# %%
import torch
from torch import nn

import openwork as ow

x = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
y = x[:, :3].argmax(1)
method = ow.SET(sparsity=0.9, steps=60, every=10)


def start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, ow.attach(model, optimizer, method)


def step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


# %% Without a break.
model, optimizer, sparsifier = start()
for _ in range(60):
    step(model, optimizer)

# %% With a break in the middle, through a file that holds tensors and plain values only.
first = start()
for _ in range(33):
    step(*first[:2])
torch.save([part.state_dict() for part in first], "half-way.pt")

second = start()
for part, state in zip(second, torch.load("half-way.pt", weights_only=True), strict=True):
    part.load_state_dict(state)
for _ in range(27):
    step(*second[:2])

assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second[0].parameters(), strict=True))
print(f"the same bits after {second[2].step_count} steps, {second[2].updates} updates of the topology")
