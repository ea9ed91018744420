"""Images as tensors and PIL images: conversion, grids, GIFs, sizes, and skins as figures."""
