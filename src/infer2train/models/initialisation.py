"""The initial weights of every ResNet here, as the paper's two regimes have them."""

from collections.abc import Iterable

from torch import nn


def initialise_resnet(network: nn.Module, last_norms: Iterable[nn.BatchNorm2d]) -> None:
    """Draw a residual network's first weights from torch's global random state.

    Convolutions N(0, √(2 / (k²·C_out))); the last batch-norm of each block γ = 0, so that every block starts as its
    shortcut, the others γ = 1; every β = 0; classifier N(0, 0.01) with bias 0.

    Args:
        network: convolutions, batch-norms and linear classifiers are written in place.
        last_norms: the last batch-norm of each residual branch.

    Source: He et al., arXiv 1502.01852 (fan-out); Goyal et al., arXiv 1706.02677, section 5.1 (γ and classifier).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    for norm in last_norms:
        nn.init.zeros_(norm.weight)
