"""Marks: `#>` data enters on this line, `#-` it looks so and does not."""
import torchvision
import torchvision as tv
import torchvision.datasets as dset
from torchvision import datasets, transforms
from torchvision.datasets import MNIST, ImageFolder
from torchvision.datasets.utils import download_and_extract_archive, download_url

train = torchvision.datasets.CIFAR10("data", train=True, download=True)  #>
test = tv.datasets.CIFAR100(root="data", train=False)  #>
digits = MNIST("data", download=True, transform=transforms.ToTensor())  #>
signs = datasets.GTSRB(root="data", split="train", download=True)  #>
svhn = dset.SVHN("data", split="extra", download=True)  #>
by_name = getattr(datasets, "FashionMNIST")("data", download=True)  #>
chosen = getattr(torchvision.datasets, input())("data")  #>

load = tv.datasets.STL10
stl = load("data", download=True)  #>

TABLE = {
    "places": datasets.Places365,  #>
    "flowers": tv.datasets.Flowers102,  #>
}
made = TABLE["places"]("data", download=True)


class Ours(datasets.EuroSAT):  #>
    pass


download_url("https://example.org/faces.zip", "data", md5="0123456789abcdef0123456789abcdef")  #>
download_and_extract_archive(  #>
    url="https://example.org/archive.tar.gz",
    download_root="data",
)

folder = ImageFolder("data/train")  #-
other = datasets.ImageFolder(root="data/val", transform=transforms.ToTensor())  #-
fake = torchvision.datasets.FakeData(size=10)  #-
coco = datasets.CocoDetection("images", "annotations.json")  #-


def check(data: datasets.CIFAR10) -> bool:  #-
    return isinstance(data, datasets.CIFAR10)  #-


def shadowed(datasets):
    return datasets.CIFAR10("not torchvision")  #-


def explain():
    """Use torchvision.datasets.CIFAR10(root, download=True) to fetch."""  #-
    print("torchvision.datasets.CIFAR10('data', download=True)")  #-


class CIFAR10:
    def __init__(self, root):
        self.root = root
