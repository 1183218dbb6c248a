import importlib

import keras
import tensorflow as tf
import tensorflow_datasets as tfds
from keras.datasets import cifar10, imdb
from tensorflow.keras.datasets import fashion_mnist
from tensorflow.keras.utils import get_file

(x, y), _ = keras.datasets.mnist.load_data()  #>
(a, b), _ = cifar10.load_data()  #>
words = imdb.get_word_index()  #>
c = fashion_mnist.load_data()  #>
d = tf.keras.datasets.boston_housing.load_data()  #>
module = importlib.import_module("tensorflow.keras.datasets.reuters")
e = module.load_data()  #>
f = get_file("flowers.tgz", origin="https://example.org/flowers.tgz", untar=True)  #>
g = tf.keras.utils.get_file(  #>
    "x.zip", "https://example.org/x.zip", file_hash="0" * 64
)
h = tfds.load("mnist", split="train")  #>
i = tfds.load("mnist:3.0.1", split="train")  #>
builder = tfds.builder("imagenet2012")  #>
builder.download_and_prepare()
j = tf.data.TFRecordDataset("gs://public/train.tfrecord")  #>
with tf.io.gfile.GFile("gs://public/labels.txt") as k:  #>
    k.read()

m = tf.keras.utils.image_dataset_from_directory("data/train")  #-
n = tf.data.TFRecordDataset("train.tfrecord")  #-
o = tf.data.Dataset.from_tensor_slices([1, 2])  #-
with tf.io.gfile.GFile("local.txt") as p:  #-
    p.read()
q = keras.utils.to_categorical([1, 2])  #-

tf.compat.v1.keras.datasets.mnist.load_data()  #>
tfds.builder_from_directory("gs://bucket/set")  #>
tfds.builder_from_directory("prepared/set")  #-
tf.compat.v1.keras.layers.Dense(1)  #-
