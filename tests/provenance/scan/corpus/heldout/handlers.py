"""Look-alikes: a web service, a library with the same names, words in strings."""
import re

from flask import request as requests
from ours import data as datasets
from ours.datasets import load_dataset, fetch_openml
from ours.wget import download

import nltk.tokenize
import seaborn
import sklearn.metrics

PATTERN = re.compile(r"wget\s+https?://\S+")  #-
HELP = """
Usage: curl -LO https://example.org/data.zip  #-
       torchvision.datasets.MNIST("data", download=True)
"""


def handle():
    name = requests.get("name")  #-
    return load_dataset(name)  #-


def fetch_data(url):
    """Get https://example.org/data.zip."""
    raise NotImplementedError(url)  #-


class Client:
    def get(self, url, stream=False):
        return (url, stream)

    def download_file(self, bucket, key, path):
        return (bucket, key, path)


client = Client()
a = client.get("https://example.org/x.zip", stream=True)  #-
b = client.download_file("bucket", "key", "path")  #-
c = datasets.MNIST("data", download=True)  #-
d = fetch_openml("adult")  #-
e = download("https://example.org/x.zip")  #-
f = seaborn.get_dataset_names  #-
g = sklearn.metrics.accuracy_score([1], [1])  #-
h = nltk.tokenize.wordpunct_tokenize("a b")  #-
i = {"wget": "https://example.org/x.zip"}  #-
j = lambda requests: requests.get("https://example.org/x.zip", stream=True)  #-
k = [boto3.download_file("a", "b") for boto3 in [client]]  #-
