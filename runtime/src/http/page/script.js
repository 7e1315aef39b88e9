(function () {
  'use strict';
  var root = document.documentElement, main = document.querySelector('main');
  var message = document.getElementById('message');
  root.classList.add('has-js');
  function say(text) { message.textContent = text; }
  document.addEventListener('click', function (event) {
    var button = event.target.closest('button[data-action]');
    if (!button) { return; }
    var name = button.dataset.name, action = button.dataset.action;
    if (!window.confirm(action + ' ' + name + ' on all workers?')) { return; }
    fetch('/api/v1/components/' + encodeURIComponent(name) + '/' + action, { method: 'POST' })
      .then(function (answer) { return answer.json().then(function (body) {
        say(answer.ok ? action + ' ' + name + ': the workers follow within two seconds' : body.message);
      }); })
      .catch(function (error) { say('The worker does not answer: ' + error.message); });
  });
  if (!main.dataset.events || !window.EventSource) { return; }
  var nodes = main.querySelectorAll('[data-v]');
  var events = new EventSource(main.dataset.events);
  var lost = false;
  events.onmessage = function (event) {
    var update = JSON.parse(event.data);
    if (update.shape !== main.dataset.shape) { window.location.reload(); return; }
    if (lost) { say(''); lost = false; }
    update.values.forEach(function (value, index) {
      var node = nodes[index];
      if (!node) { return; }
      if (node.tagName.toLowerCase() === 'path') { node.setAttribute('d', value); }
      else if (node.textContent !== value) { node.textContent = value; }
    });
  };
  events.onerror = function () { lost = true; say('The worker does not answer. The numbers are old.'); };
})();
