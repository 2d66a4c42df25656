"""Trainings whose network is run by a function of a test."""

from nas.training.optimizer import check_depends


def by(forward):
    """Gradients of one pass of `forward(network, images, step)`."""

    def gradients(loop, batch):
        loss = loop.loss(batch, lambda x: forward(loop.network, x, loop.step))
        check_depends(loss, loop.step)
        loss.backward()
        return loss

    return gradients
