"""SentiNet: a salient region that takes its class along to other images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rivals.interface import Answer, Examined, Flags, Floats, Peer
from rivals.network import BATCH, Network, pixels_of

ROWS, HONEST, FIRST, OVERLAYS = 2000, 80, 4, 30
AREA = 0.15
FALSE_ALARMS = 0.01
BINS = 8


@dataclass(frozen=True, slots=True)
class Points:
    """Of each examined image: how many of the trusted images its region fooled, and how sure the model was
    of the same trusted images with noise in that place. ``screened`` ones fooled too few at first to go on.
    """

    fooled: Floats
    confidence: Floats
    screened: Flags


def sentinet(examined: Examined) -> Answer:
    """The share of training rows whose salient region fools more trusted images than honest regions do.

    E. Chou, F. Tramèr, G. Pellegrino, "SentiNet: Detecting localized universal attacks against deep learning
    systems", IEEE Deep Learning and Security Workshop 2020 (arXiv:1812.00292, 2018). Grad-CAM of the
    predicted class picks a region; pasted on trusted images it is tried against noise in the same place. A
    curve is laid over the points (confidence with noise, share fooled) of 80 trusted images, and rows beyond
    it and a margin are flagged: the margin leaves 1 % of the trusted images beyond.

    Ours, for time: at most 2,000 rows, the region is the most salient 15 % of the pixels, 30 trusted images,
    and a row that fools fewer than 3 of the first 4 is let go; trusted images of the row's own class do not
    count as fooled. Where the region covers the trigger nearly all are fooled, and Grad-CAM shows it in about
    half of the poisoned rows. Known to miss triggers that Grad-CAM does not show or that have no place
    (blends, stripes, warps), and source-specific ones, since trusted images of all classes are pasted on.
    """
    rng = examined.random("sentinet")
    sample = examined.sample(ROWS)
    order = rng.permutation(len(examined.trusted))
    honest, behind = np.sort(order[:HONEST]), np.sort(order[HONEST:])
    trusted, labels = examined.trusted[behind], examined.trusted_labels[behind]
    usual = try_regions(examined.network, examined.trusted[honest], trusted, labels, rng, screen=False)
    curve, margin = envelope(usual)
    points = try_regions(examined.network, examined.images[sample.rows], trusted, labels, rng)
    excess = points.fooled - np.polyval(curve, points.confidence)
    # Those let go rank below all others, by what the first overlays told.
    suspicion = np.where(points.screened, points.fooled - 3, excess)
    flagged = ~points.screened & (excess > margin)
    return Answer({"share of rows": float(flagged[sample.blind].mean())}, sample.rows, suspicion, flagged)


def envelope(points: Points) -> tuple[Floats, float]:
    """A parabola through the highest honest points along the confidence, and the margin above it."""
    edges = np.linspace(points.confidence.min(), points.confidence.max() + 1e-9, BINS + 1)
    place = np.clip(np.digitize(points.confidence, edges) - 1, 0, BINS - 1)
    tops = [
        max(np.flatnonzero(place == b), key=lambda i: points.fooled[i])
        for b in range(BINS)
        if (place == b).any()
    ]
    degree = min(2, len(tops) - 1)
    curve = np.polyfit(points.confidence[tops], points.fooled[tops], degree)
    excess = points.fooled - np.polyval(curve, points.confidence)
    return curve, max(0.0, float(np.quantile(excess, 1 - FALSE_ALARMS)))


def try_regions(
    network: Network,
    images: NDArray[np.uint8],
    trusted: NDArray[np.uint8],
    labels: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    screen: bool = True,
) -> Points:
    """Paste every image's salient region on trusted images of other classes than the predicted one."""
    pixels = pixels_of(images)
    said, regions = salient_regions(network, pixels)
    fooled, confidence = np.zeros(len(images)), np.zeros(len(images))
    screened = np.zeros(len(images), dtype=bool)
    if screen:
        fooled = _fooled(network, pixels, regions, said, _behind(said, trusted, labels, FIRST, rng))
        screened = fooled < 3 / 4
    for i in np.flatnonzero(~screened).tolist():
        one = slice(i, i + 1)
        behind = _behind(said[one], trusted, labels, OVERLAYS, rng)
        fooled[i] = _fooled(network, pixels[one], regions[one], said[one], behind)[0]
        noise = torch.from_numpy(rng.random(pixels[0].shape, dtype=np.float32))
        inert = torch.where(regions[i], noise, behind[0])
        confidence[i] = float(network.probabilities(inert).max(1).values.mean())
    return Points(fooled, confidence, screened)


def salient_regions(network: Network, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted class (n,), and where it is seen: bool (n, 1, H, W), the most salient ``AREA``.

    Grad-CAM (Selvaraju et al., ICCV 2017) at the last map that is at least a quarter of the image wide.
    """
    classes, regions = [], []
    for part in pixels.split(BATCH):
        said, cam = grad_cam(network, part)
        cam = nn.functional.interpolate(cam[:, None], part.shape[2:], mode="bilinear", align_corners=False)
        flat = cam.flatten(1)
        count = max(1, round(AREA * flat.shape[1]))
        region = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(count, 1).indices, True)
        classes.append(said)
        regions.append(region.view_as(cam))
    return torch.cat(classes), torch.cat(regions)


def grad_cam(network: Network, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted class, and its class activation map (n, h, w)."""
    maps, kept = pixels, pixels
    at = 0
    with torch.no_grad():
        for number, layer in enumerate(network.layers):
            maps = layer(maps)
            if maps.dim() == 4 and maps.shape[-1] * 4 >= pixels.shape[-1]:
                at, kept = number, maps
    kept = kept.detach().requires_grad_()
    logits = network.layers[at + 1 :](kept)
    said = logits.argmax(1)
    top = logits.gather(1, said[:, None]).sum()
    (slope,) = network.slopes(top, [kept], len(pixels))
    cam = (slope.mean((2, 3), keepdim=True) * kept.detach()).sum(1).relu()
    return said.detach(), cam


def _behind(
    said: Tensor, trusted: NDArray[np.uint8], labels: NDArray[np.int64], count: int, rng: np.random.Generator
) -> Tensor:
    """For each predicted class ``count`` trusted images of other classes: (n, count, 3, H, W)."""
    drawn = np.empty((len(said), count), dtype=np.int64)
    said_classes = said.numpy()
    for label in np.unique(said_classes):
        others = np.flatnonzero(labels != label)
        own = said_classes == label
        drawn[own] = rng.choice(others, (int(own.sum()), count))
    return pixels_of(trusted[drawn.ravel()]).view(len(said), count, 3, *trusted.shape[1:3])


def _fooled(network: Network, pixels: Tensor, regions: Tensor, said: Tensor, behind: Tensor) -> Floats:
    """The share of the images behind that a pasted region turns into the class it came from, (n,)."""
    shares = []
    step = max(1, BATCH // behind.shape[1])
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        pasted = torch.where(regions[part, None], pixels[part, None], behind[part])
        answers = network.probabilities(pasted.flatten(0, 1)).argmax(1).view(pasted.shape[:2])
        shares.append((answers == said[part, None]).double().mean(1).numpy())
    return np.concatenate(shares)


PEERS = (
    Peer(
        "sentinet",
        "SentiNet",
        "E. Chou, F. Tramèr, G. Pellegrino, DLS 2020, arXiv:1812.00292",
        f"{ROWS} rows, {HONEST} honest, {OVERLAYS} overlays after {FIRST}, area {AREA}",
        sentinet,
    ),
)
